-- One number that stands for all functions, views, enums and domains of the database that somebody made: a query may be made of
-- them. Other sessions' temporary ones come and go.
SELECT hashtextextended(concat_ws('|',
    (SELECT sum(hashtextextended(p.oid || ' ' || p.xmin, 0)) FROM pg_proc p
     JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid >= 16384 AND n.nspname !~ '^pg_(toast|temp)'),
    (SELECT sum(hashtextextended(r.oid || ' ' || r.xmin, 0)) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.oid >= 16384 AND n.nspname !~ '^pg_(toast|temp)'),
    (SELECT sum(hashtextextended(e.oid || ' ' || e.xmin, 0)) FROM pg_enum e),
    (SELECT sum(hashtextextended(t.oid || ' ' || t.xmin, 0)) FROM pg_type t
     WHERE t.oid >= 16384 AND t.typtype IN ('d', 'e'))), 0) AS signature
