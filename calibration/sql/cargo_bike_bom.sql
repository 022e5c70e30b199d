-- Bill of materials for a cargo bicycle workshop
-- Portable between PostgreSQL and recent SQLite, except where a remark says otherwise.

CREATE TABLE part (
  sku       VARCHAR(24) PRIMARY KEY,
  label     VARCHAR(80) NOT NULL,
  made_here INTEGER NOT NULL CHECK (made_here IN (0, 1)),
  price     NUMERIC,             -- purchase price; assemblies get theirs by roll-up
  minutes   NUMERIC DEFAULT 0,   -- bench time spent on this level alone
  lead_days INTEGER DEFAULT 0,
  CHECK (made_here = 1 OR price IS NOT NULL)
);

CREATE TABLE uses (
  parent   VARCHAR(24) NOT NULL REFERENCES part (sku),
  child    VARCHAR(24) NOT NULL REFERENCES part (sku),
  qty      NUMERIC NOT NULL CHECK (qty > 0),
  scrap    NUMERIC NOT NULL DEFAULT 0 CHECK (scrap >= 0 AND scrap < 1),
  from_day DATE NOT NULL DEFAULT '2019-01-01',
  to_day   DATE,                 -- exclusive; open while the design is current
  PRIMARY KEY (parent, child, from_day)
);

CREATE TABLE stock (
  sku  VARCHAR(24) PRIMARY KEY REFERENCES part (sku),
  free NUMERIC NOT NULL
);

INSERT INTO part (sku, label, made_here, price, minutes, lead_days) VALUES
  ('LONGTAIL',   'Longtail bicycle, complete',       1, NULL, 95, 1),
  ('FRAME-L',    'Brazed longtail frame',            1, NULL, 410, 4),
  ('WHEEL-R20',  'Rear wheel, 20 inch, 36 spokes',   1, NULL, 48, 0),
  ('WHEEL-F26',  'Front wheel, dynamo hub',          1, NULL, 52, 0),
  ('TUBE-4130',  'Chromoly tube, per metre',         0, 9.40, 0, 12),
  ('LUG-HEAD',   'Investment-cast head lug',         0, 14.75, 0, 40),
  ('SILVER',     'Brazing rod 45% Ag, gram',         0, 0.96, 0, 5),
  ('SPOKE',      'Stainless spoke with nipple',      0, 0.38, 0, 3),
  ('HUB-DYN',    'Dynamo hub 6 V 3 W',               0, 61.00, 0, 21),
  ('HUB-IGH8',   'Eight-speed internal gear hub',    0, 148.50, 0, 35),
  ('RIM-20',     'Double-wall rim, 406 mm',          0, 27.00, 0, 9),
  ('RIM-26',     'Double-wall rim, 559 mm',          0, 24.30, 0, 9),
  ('DECK-ASH',   'Ash cargo deck, oiled',            1, NULL, 70, 2),
  ('PLANK-ASH',  'Ash board 22 mm, per metre',       0, 11.20, 0, 7);

INSERT INTO uses (parent, child, qty, scrap) VALUES
  ('LONGTAIL', 'FRAME-L', 1, 0), ('LONGTAIL', 'WHEEL-R20', 1, 0),
  ('LONGTAIL', 'WHEEL-F26', 1, 0), ('LONGTAIL', 'DECK-ASH', 1, 0),
  ('FRAME-L', 'TUBE-4130', 7.2, 0.08), ('FRAME-L', 'LUG-HEAD', 1, 0.01),
  ('FRAME-L', 'SILVER', 38, 0.15),
  ('WHEEL-R20', 'HUB-IGH8', 1, 0), ('WHEEL-R20', 'RIM-20', 1, 0.02),
  ('WHEEL-R20', 'SPOKE', 36, 0.03),
  ('WHEEL-F26', 'HUB-DYN', 1, 0), ('WHEEL-F26', 'RIM-26', 1, 0.02),
  ('WHEEL-F26', 'SPOKE', 32, 0.03),
  ('DECK-ASH', 'PLANK-ASH', 3.6, 0.2);

INSERT INTO stock VALUES ('SPOKE', 250), ('TUBE-4130', 31.5), ('RIM-26', 2), ('WHEEL-F26', 1);

-- Indented explosion as it stands today. The trail column does double duty: it
-- sorts children beneath their parent, and it lets us notice a part that has
-- (through some clerical mishap) become a component of itself.
CREATE VIEW exploded AS
WITH RECURSIVE tree (root, sku, depth, per_unit, trail, looped) AS (
  SELECT sku, sku, 0, CAST(1 AS NUMERIC), CAST('/' || sku || '/' AS TEXT), 0
    FROM part
  UNION ALL
  SELECT t.root, u.child, t.depth + 1,
         t.per_unit * u.qty / (1 - u.scrap),    -- buy extra to cover the losses
         t.trail || u.child || '/',
         CASE WHEN t.trail LIKE '%/' || u.child || '/%' THEN 1 ELSE 0 END
    FROM tree t
    JOIN uses u ON u.parent = t.sku
   WHERE t.looped = 0
     AND u.from_day <= CURRENT_DATE
     AND (u.to_day IS NULL OR u.to_day > CURRENT_DATE)
)
SELECT * FROM tree;

-- Printed for the workshop wall.
SELECT SUBSTR('. . . . . . . . ', 1, 2 * e.depth) || p.label AS item,
       ROUND(e.per_unit, 2) AS each_bike
  FROM part p, exploded e
 WHERE p.sku = e.sku AND e.root = 'LONGTAIL'
 ORDER BY e.trail;

-- Must come back empty. Runs nightly and mails whoever touched the data last.
SELECT root AS culprit, trail FROM exploded WHERE looped = 1;

-- Cost roll-up: material comes from purchased leaves; labour from every level,
-- multiplied by how many of that assembly go into one finished article. The rate
-- of 0.70 per minute includes heating, rent and biscuits.
CREATE VIEW costed AS
SELECT e.root AS sku,
       SUM(CASE p.made_here WHEN 0 THEN e.per_unit * p.price ELSE 0 END) AS material,
       SUM(e.per_unit * p.minutes) * 0.70 AS labour
  FROM exploded e JOIN part p ON p.sku = e.sku
 GROUP BY e.root;

SELECT p.label, ROUND(c.material, 2) AS material, ROUND(c.labour, 2) AS labour,
       ROUND((c.material + c.labour) * 1.35, 2) AS list_price
  FROM costed c JOIN part p ON p.sku = c.sku
 WHERE p.made_here = 1
 ORDER BY list_price DESC;

/* Critical path. How long from an empty workshop to one ready bicycle, and which
   purchase is to blame? Walking downward, lead times add up; the longest branch
   wins. */
WITH RECURSIVE chain (sku, days, via) AS (
  SELECT sku, lead_days, CAST(label AS TEXT) FROM part WHERE sku = 'LONGTAIL'
  UNION ALL
  SELECT p.sku, c.days + p.lead_days, c.via || ' <- ' || p.label
    FROM chain c
    JOIN uses u ON u.parent = c.sku AND u.to_day IS NULL
    JOIN part p ON p.sku = u.child
)
SELECT days, via FROM chain ORDER BY days DESC LIMIT 3;

-- Shortages for an order of five. Netting happens on purchased parts only, after
-- subtracting what finished sub-assemblies on the shelf have already absorbed.
-- (Exact for one level of stocked assemblies, and ours never nest deeper.)
WITH need AS (
  SELECT sku, SUM(per_unit) * 5 AS gross FROM exploded
   WHERE root = 'LONGTAIL' AND depth > 0 GROUP BY sku
), absorbed AS (
  SELECT e.sku, SUM(e.per_unit * CASE WHEN s.free < n.gross THEN s.free ELSE n.gross END) AS saved
    FROM stock s
    JOIN need n ON n.sku = s.sku
    JOIN exploded e ON e.root = s.sku AND e.depth > 0
   GROUP BY e.sku
)
SELECT p.sku, ROUND(n.gross - COALESCE(a.saved, 0) - COALESCE(s.free, 0), 1) AS buy, p.lead_days
  FROM need n
  JOIN part p ON p.sku = n.sku AND p.made_here = 0
  LEFT JOIN absorbed a ON a.sku = n.sku
  LEFT JOIN stock s ON s.sku = n.sku
 WHERE n.gross > COALESCE(a.saved, 0) + COALESCE(s.free, 0)
 ORDER BY p.lead_days DESC, buy DESC;
