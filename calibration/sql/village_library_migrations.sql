-- Lending records of a village library (PostgreSQL 14 or later).
--
-- Run top to bottom, whatever version is installed: lending.apply() skips steps
-- already taken. They share a file because the librarian, who is also treasurer
-- and keeper of the boiler-room key, asked for one thing to double-click.

CREATE SCHEMA IF NOT EXISTS lending;
CREATE EXTENSION IF NOT EXISTS btree_gist;
SET search_path = lending, public;

CREATE TABLE IF NOT EXISTS schema_step (
  step        integer PRIMARY KEY,
  title       text NOT NULL,
  applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE OR REPLACE PROCEDURE apply(which integer, heading text, ddl text)
LANGUAGE plpgsql AS $proc$
BEGIN
  -- Two laptops once ran the script simultaneously. Hence the lock.
  PERFORM pg_advisory_xact_lock(hashtext('lending.schema_step'));
  IF EXISTS (SELECT FROM schema_step WHERE step = which) THEN
    RETURN;
  END IF;
  EXECUTE ddl;
  INSERT INTO schema_step (step, title) VALUES (which, heading);
END
$proc$;


CALL apply(1, 'titles, copies, members', $ddl$
  CREATE DOMAIN isbn13 AS text
    CHECK (VALUE ~ '^97[89][0-9]{10}$');

  CREATE TABLE title (
    title_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    isbn      isbn13 UNIQUE,           -- NULL for parish newsletters and the like
    name      text NOT NULL CHECK (name <> ''),
    authors   text[] NOT NULL DEFAULT '{}',
    published smallint
  );

  -- When a copy is replaced its sticker moves along, hence the surrogate key.
  CREATE TABLE copy (
    copy_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    barcode   text NOT NULL,
    title_id  bigint NOT NULL REFERENCES title ON DELETE RESTRICT,
    shelved   date NOT NULL DEFAULT current_date,
    withdrawn date,
    CHECK (withdrawn >= shelved)
  );
  CREATE UNIQUE INDEX one_live_copy_per_barcode
    ON copy (barcode) WHERE withdrawn IS NULL;

  CREATE TABLE member (
    member_id integer PRIMARY KEY,     -- number printed on the paper card
    full_name text NOT NULL,
    born      date,
    guardian  integer REFERENCES member,
    CONSTRAINT not_own_guardian CHECK (guardian <> member_id)
  );
$ddl$);


CALL apply(2, 'loans as time ranges', $ddl$
  CREATE TABLE loan (
    loan_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    copy_id   bigint  NOT NULL REFERENCES copy,
    member_id integer NOT NULL REFERENCES member,
    held      tstzrange NOT NULL,      -- upper bound infinite until returned
    due       date NOT NULL,
    renewals  smallint NOT NULL DEFAULT 0 CHECK (renewals BETWEEN 0 AND 3),
    CHECK (NOT isempty(held) AND NOT lower_inf(held)),
    -- The physical fact everything else hangs on: a book is in one place.
    EXCLUDE USING gist (copy_id WITH =, held WITH &&)
  );
  CREATE INDEX loan_open_by_member ON loan (member_id) WHERE upper_inf(held);
$ddl$);


CALL apply(3, 'reservations with a fair queue', $ddl$
  CREATE TYPE hold_state AS ENUM ('waiting', 'on_shelf', 'collected', 'lapsed');

  CREATE TABLE hold (
    hold_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    member_id integer NOT NULL REFERENCES member,
    title_id  bigint  NOT NULL REFERENCES title,
    asked_at  timestamptz NOT NULL DEFAULT now(),
    copy_id   bigint REFERENCES copy,
    state     hold_state NOT NULL DEFAULT 'waiting',
    CHECK ((copy_id IS NULL) = (state IN ('waiting', 'lapsed')))
  );
  CREATE UNIQUE INDEX no_double_asking
    ON hold (title_id, member_id) WHERE state IN ('waiting', 'on_shelf');
$ddl$);


-- Years typed as "73" in the card-index era meant 1973.
CALL apply(4, 'two-digit years', $ddl$
  UPDATE title SET published = published + 1900 WHERE published BETWEEN 10 AND 99;
  ALTER TABLE title
    ADD CONSTRAINT plausible_year CHECK (published BETWEEN 1450 AND 2200);
$ddl$);


-- Functions are replaced on every run, so they are not numbered.

CREATE OR REPLACE FUNCTION check_out(code text, card integer, days integer DEFAULT 21)
RETURNS date LANGUAGE plpgsql AS $$
DECLARE
  picked copy;
  claimed_by integer;
  back_on date := current_date + days;
BEGIN
  SELECT * INTO picked FROM copy
   WHERE barcode = code AND withdrawn IS NULL
    FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no book carries barcode %', code USING ERRCODE = 'no_data_found';
  END IF;

  SELECT h.member_id INTO claimed_by
   FROM hold h
   WHERE h.copy_id = picked.copy_id AND h.state = 'on_shelf';
  IF claimed_by IS DISTINCT FROM card AND claimed_by IS NOT NULL THEN
    RAISE EXCEPTION 'set aside for member %', claimed_by;
  END IF;

  INSERT INTO loan (copy_id, member_id, held, due)
  VALUES (picked.copy_id, card, tstzrange(now(), NULL), back_on);
  UPDATE hold SET state = 'collected'
   WHERE copy_id = picked.copy_id AND state = 'on_shelf';
  RETURN back_on;
EXCEPTION
  WHEN exclusion_violation THEN
    RAISE EXCEPTION '% is still booked out; hand it back in first', code;
END $$;

-- SKIP LOCKED keeps two desks from both serving the same person.
CREATE OR REPLACE FUNCTION hand_in(code text) RETURNS text LANGUAGE sql AS $$
  WITH closed AS (
    UPDATE loan l
      SET held = tstzrange(lower(held), clock_timestamp())
     FROM copy c
     WHERE c.copy_id = l.copy_id AND c.barcode = code
      AND c.withdrawn IS NULL AND upper_inf(l.held)
    RETURNING c.copy_id, c.title_id
  ), next_in_line AS (
    SELECT h.hold_id, closed.copy_id
     FROM hold h JOIN closed USING (title_id)
     WHERE h.state = 'waiting'
     ORDER BY h.asked_at
     LIMIT 1 FOR UPDATE OF h SKIP LOCKED
  ), served AS (
    UPDATE hold SET state = 'on_shelf', copy_id = n.copy_id
     FROM next_in_line n WHERE hold.hold_id = n.hold_id
    RETURNING hold.member_id
  )
  SELECT coalesce('put aside for ' || (SELECT full_name FROM member JOIN served USING (member_id)),
          CASE WHEN EXISTS (TABLE closed) THEN 'reshelve' ELSE 'was not on loan' END);
$$;
