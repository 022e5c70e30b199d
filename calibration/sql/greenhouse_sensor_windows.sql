/*
  Glasshouse climate analytics.   Dialect: SQLite 3.30+ (FILTER, named windows,
  RANGE frames with an offset). Load with:   sqlite3 climate.db < this_file

  Probes report whenever they feel like it: nominally every five minutes, in
  practice with gaps, duplicates after a radio retry, and the odd impossible
  value when condensation shorts a contact. Everything below is a view, so the
  raw table remains the single record of what was actually received.
*/
pragma foreign_keys = on;

create table if not exists probe(
  id      text primary key,
  bay     text not null,
  height  real not null check(height between 0 and 6),  -- metres over the bench
  offset_c real not null default 0                       -- from the ice-bath test
) without rowid;

create table if not exists reading(
  probe text not null references probe(id),
  at    integer not null,            -- unix seconds, UTC
  temp  real, rh real,
  heard integer not null default (strftime('%s','now'))
);
create index if not exists reading_probe_at on reading(probe, at);

-- 1. Deduplicate and correct. Of several reports for the same instant, trust the
--    one heard last, because the gateway resends after fixing checksum errors.
drop view if exists clean;
create view clean as
select probe, bay, at, temp + offset_c as temp, rh
from (
  select r.*, p.bay, p.offset_c,
         row_number() over (partition by r.probe, r.at order by r.heard desc, r.rowid desc) as pick
  from reading r join probe p on p.id = r.probe
)
where pick = 1
  and temp between -15 and 60
  and (rh is null or rh between 0 and 100);

-- 2. Spikes. A reading is suspect when it departs from BOTH neighbours by more
--    than four degrees in the same direction; a real event (vent opened, boiler
--    lit) departs from only one of them. The missing side at either end of the
--    series counts as agreement.
drop view if exists despiked;
create view despiked as
with beside as (
  select *, temp - lag(temp)  over w as rise_from_before,
            temp - lead(temp) over w as rise_over_after
  from clean
  window w as (partition by bay, probe order by at)
)
select probe, bay, at, temp, rh,
       coalesce(abs(rise_from_before) > 4
            and abs(rise_over_after)  > 4
            and rise_from_before * rise_over_after > 0, 0) as spike
from beside;

-- 3. Silences, by the classic gaps-and-islands route. Fifteen minutes without a
--    word begins a new island; summing the flags numbers them.
drop view if exists uptime;
create view uptime as
select probe, island,
       datetime(min(at), 'unixepoch') as came_up,
       datetime(max(at), 'unixepoch') as went_quiet,
       count(*) as reports,
       round((max(at) - min(at)) / 3600.0, 1) as hours
from (
  select probe, at,
         sum(fresh) over (partition by probe order by at rows unbounded preceding) as island
  from (select probe, at,
               at - lag(at, 1, 0) over (partition by probe order by at) > 900 as fresh
        from clean)
)
group by probe, island;

/* 4. Smoothed curve: mean of the surrounding hour by clock, not by row count.
      ROWS would stretch across an outage and mix yesterday with today; RANGE
      cannot. The residual is against a leave-one-out mean, hence the
      factor n/(n-1), and makes a handy drift indicator. */
drop view if exists smooth;
create view smooth as
select probe, at, temp,
       avg(temp) over hour as hourly,
       (temp - avg(temp) over hour) * count(*) over hour
         / nullif(count(*) over hour - 1.0, 0) as residual,
       count(*) over hour as support
from despiked
where not spike
window hour as (partition by probe order by at range between 1800 preceding and 1800 following);

-- 5. Degree-hours under 8 C, which is what kills basil. Trapezium rule between
--    consecutive reports; an interval longer than half an hour contributes
--    nothing because we would merely be guessing.
drop view if exists chill;
create view chill as
with legs as (
  select bay, probe, at, max(8 - temp, 0) as deficit,
         lead(at) over nxt as until,
         max(8 - lead(temp) over nxt, 0) as deficit_after
  from despiked where not spike
  window nxt as (partition by probe order by at)
)
select bay, date(at, 'unixepoch', '-12 hours') as night,   -- noon-to-noon days
       round(sum((deficit + deficit_after) / 2 * (until - at) / 3600.0)
             filter (where until - at <= 1800), 2)
         / count(distinct probe) as degree_hours
from legs
group by 1, 2
having degree_hours > 0;

-- 6. Nightly ranking. Which bay was worst, and is it getting worse? The frame of
--    the running comparison stops at yesterday, otherwise each night would
--    dilute the very baseline it gets judged by.
drop view if exists chill_report;
create view chill_report as
select night, bay, degree_hours,
       rank() over (partition by night order by degree_hours desc) as severity,
       round(degree_hours - avg(degree_hours) over (
         partition by bay order by night rows between 7 preceding and 1 preceding), 2) as vs_week,
       case when degree_hours = max(degree_hours) over (partition by bay
                  order by night rows unbounded preceding)
            then 'record' else '' end as note
from chill;

-- 7. Vapour pressure deficit quartiles per hour of day, Magnus formula. Built as
--    a plain query since it is only ever run by hand before the growers' meeting.
with vpd as (
  select bay, cast(strftime('%H', at, 'unixepoch') as int) as hr,
         0.6108 * exp(17.27 * temp / (temp + 237.3)) * (1 - rh / 100.0) as kpa
  from despiked where rh is not null and not spike
), ranked as (
  select bay, hr, kpa, ntile(4) over (partition by bay, hr order by kpa) as q
  from vpd
)
select bay, hr,
       round(max(kpa) filter (where q = 1), 2) as lower_quartile,
       round(max(kpa) filter (where q = 2), 2) as median,
       round(max(kpa) filter (where q = 3), 2) as upper_quartile
from ranked
group by bay, hr
having count(*) >= 8
order by bay, hr;
