-- Values of every kind of type whose JSON form is made from the text in the stream: one column per type, named after
-- it. Each row of `types` and `types_nested`, rendered from the stream, must equal row_to_json of it in a session with
-- TimeZone = 'UTC'. In `types_refetched` every column but the key is of a type that cannot be rendered: each value must make its event
-- refetch the row. It makes its own schema, `types`, in any database with encoding UTF-8.

CREATE SCHEMA types;
SET search_path = types;

CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"', 'back\slash', 'ünï, {x}', 'NULL');
CREATE DOMAIN positive AS int4 CHECK (VALUE > 0);
CREATE DOMAIN nested_positive AS positive;
CREATE DOMAIN ints AS int4[];
CREATE DOMAIN a_date AS date;
CREATE TYPE pair AS (a int4, b text);
CREATE DOMAIN a_pair AS pair;
CREATE TYPE casted AS ENUM ('one', 'two');
CREATE FUNCTION casted_to_json(casted) RETURNS json LANGUAGE sql IMMUTABLE AS $$ SELECT json_build_object('is', $1::text) $$;
CREATE CAST (casted AS json) WITH FUNCTION casted_to_json(casted);
CREATE TYPE float_range AS RANGE (subtype = float8);

CREATE TABLE types (
    id int4 PRIMARY KEY,
    "bool" bool,
    "int2" int2,
    "int4" int4,
    "int8" int8,
    "float4" float4,
    "float8" float8,
    "numeric" numeric,
    "numeric(20,4)" numeric(20, 4),
    "text" text,
    "varchar" varchar,
    "varchar(40)" varchar(40),
    "bpchar" bpchar,
    "char(8)" char(8),
    "char" "char",
    "name" name,
    "uuid" uuid,
    "json" json,
    "jsonb" jsonb,
    "bytea" bytea,
    "date" date,
    "time" time,
    "timetz" timetz,
    "timestamp" timestamp,
    "timestamp(0)" timestamp(0),
    "timestamptz" timestamptz,
    "timestamptz(3)" timestamptz(3),
    "interval" interval,
    "mood" mood,
    "positive" positive,
    "nested_positive" nested_positive,
    "a_date" a_date,
    "ints" ints,
    "oid" oid,
    "xid" xid,
    "xid8" xid8,
    "cid" cid,
    "tid" tid,
    "pg_lsn" pg_lsn,
    "int2vector" int2vector,
    "oidvector" oidvector,
    "money" money,
    "inet" inet,
    "cidr" cidr,
    "macaddr" macaddr,
    "macaddr8" macaddr8,
    "bit" bit(5),
    "varbit" varbit,
    "tsvector" tsvector,
    "tsquery" tsquery,
    "point" point,
    "line" line,
    "lseg" lseg,
    "box" box,
    "path" path,
    "polygon" polygon,
    "circle" circle,
    "jsonpath" jsonpath,
    "int4range" int4range,
    "numrange" numrange,
    "tsrange" tsrange,
    "tstzrange" tstzrange,
    "daterange" daterange,
    "float_range" float_range,
    "int4multirange" int4multirange,
    "tstzmultirange" tstzmultirange,
    "bool[]" bool[],
    "int2[]" int2[],
    "int4[]" int4[],
    "int8[]" int8[],
    "float4[]" float4[],
    "float8[]" float8[],
    "numeric[]" numeric[],
    "text[]" text[],
    "varchar[]" varchar[],
    "char(3)[]" char(3)[],
    "char[]" "char"[],
    "uuid[]" uuid[],
    "json[]" json[],
    "jsonb[]" jsonb[],
    "bytea[]" bytea[],
    "date[]" date[],
    "time[]" time[],
    "timestamp[]" timestamp[],
    "timestamptz[]" timestamptz[],
    "interval[]" interval[],
    "mood[]" mood[],
    "positive[]" positive[],
    "ints[]" ints[],
    "box[]" box[],
    "point[]" point[],
    "inet[]" inet[],
    "tstzrange[]" tstzrange[],
    "int2vector[]" int2vector[],
    "na""me, \ ünï" text
);

-- All null.
INSERT INTO types (id) VALUES (0);

-- Plain values.
INSERT INTO types VALUES (
    1, true, 1, 1, 1, 1, 1, 1, 1, 'text', 'varchar', 'varchar', 'bpchar', 'char', 'c', 'name',
    '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '{"a": [1, 2.50, null, true]}', '{"b": "x", "a": [1, 2.50, null, true]}',
    '\xdeadbeef', '2001-02-03', '04:05:06', '04:05:06+02', '2001-02-03 04:05:06', '2001-02-03 04:05:06',
    '2001-02-03 04:05:06+00', '2001-02-03 04:05:06+00', '1 year 2 months 3 days 04:05:06.789', 'sad', 1, 2,
    '2001-02-03', '{1,2,3}', 1, '2', '3', '4', '(5,6)', '16/B374D848', '1 2 3', '4 5', 12.5, '192.168.0.1/24',
    '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', B'10101', B'101', 'a fat cat', 'fat & !cat',
    '(1,2)', '{1,2,3}', '[(1,2),(3,4)]', '(1,2),(3,4)', '[(1,2),(3,4)]', '((1,2),(3,4),(5,6))', '<(1,2),3>',
    '$.a[*] ? (@ > 1)', '[1,5)', '[1.5,2.5]', '[2001-02-03 04:05:06,2001-02-04 00:00)',
    '[2001-02-03 04:05:06+00,2001-02-04 00:00+00)', '[2001-02-03,2001-03-04)', '[1,2]', '{[1,2),[5,9)}',
    '{[2001-02-03 04:05:06+00,2001-02-04 00:00+00)}', '{t,f}', '{1,2}', '{1,2,3}', '{1,2}', '{1.5,2}', '{1.5,2}',
    '{1.50,2}', '{a,b}', '{a,b}', '{a,b}', '{a,b}', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}',
    ARRAY['{"a": 1}', '[1, 2]']::json[], ARRAY['{"a": 1}', '[1, 2]']::jsonb[], ARRAY['\x00ff', '\x']::bytea[],
    '{2001-02-03,2001-02-04}', '{04:05:06,24:00}', '{2001-02-03 04:05:06}', '{2001-02-03 04:05:06+00}',
    '{1 day,-00:00:01}', ARRAY['sad', 'it''s "ok"']::mood[], '{1,2}', ARRAY['{1,2}', '{3}']::ints[],
    '{(1,2),(3,4);(5,6),(7,8)}', ARRAY['(1,2)', '(3,4)']::point[], '{127.0.0.1,::1}',
    ARRAY['[2001-02-03 04:05:06+00,)', 'empty']::tstzrange[], ARRAY['1 2', '3']::int2vector[], 'plain'
);

-- The least values, and empty ones.
INSERT INTO types VALUES (
    2, false, -32768, -2147483648, -9223372036854775808, '-Infinity', '-Infinity', '-Infinity',
    -9999999999999999.9999, '', '', '', '', '', '', '', '00000000-0000-0000-0000-000000000000', '""', '{}', '',
    '4713-01-01 BC', '00:00:00', '00:00:00+15:59', '4714-11-24 00:00:00 BC', '0001-12-31 23:59:59 BC',
    '4714-11-24 00:00:00+00 BC', '0044-03-15 12:34:56.789+00 BC', '-178000000 years', 'NULL', 1, 1, '-infinity', '{}',
    0, '0', '0', '0', '(0,0)', '0/0', '', '', '-92233720368547758.08', '0.0.0.0/0', '0.0.0.0/0', '00:00:00:00:00:00',
    '00:00:00:00:00:00:00:00', B'00000', B'', '', '', '(-Infinity,NaN)', '{-1,0,0}', '[(0,0),(0,0)]', '(0,0),(0,0)',
    '((0,0))', '((0,0))', '<(0,0),0>', '$', 'empty', '(,)', '(,)', '(-infinity,infinity)', '[-infinity,infinity]',
    '(-Infinity,)', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
    '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', ''
);

-- The greatest values, and unusual texts.
INSERT INTO types VALUES (
    3, true, 32767, 2147483647, 9223372036854775807, 'Infinity', 'Infinity', 'Infinity', 9999999999999999.9999,
    E'quote " apostrophe '' backslash \\ slash / tab \t line \n return \r bell \a feed \f back \b \x01\x0b\x1f\x7f',
    E'ünïcode \u20ac \U0001F600 \u2028 \u200b e\u0301 \ufeff', '  padded  ', 'trailing   ', 'pad', '\', 'it''s "x"\',
    'ffffffff-ffff-ffff-ffff-ffffffffffff', E'\n{ "a" : "\\u00e9 \\n é",\t"a": 1e400 ,"b":[ ] }\n',
    '{"a": "\u00e9 \n \" é", "b": 1e400, "c": -0.0}', '\x000102030405060708090a0b0c0d0e0f22275cff', '5874897-12-31',
    '24:00:00', '24:00:00-15:59:59', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59',
    '294276-12-31 23:59:59.999999+00', '294276-12-31 23:59:59.999+00', '178000000 years', 'it''s "ok"', 2147483647,
    2147483647, 'infinity', '[2:4]={1,NULL,3}', 4294967295, '4294967295', '18446744073709551615', '4294967295',
    '(4294967295,65535)', 'FFFFFFFF/FFFFFFFF', '-32768 32767', '4294967295 0', '92233720368547758.07',
    'ffff:ffff::1/128', '2001:db8::/32', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff', B'11111',
    B'1111111111111111111111111111111111111111111111111111111111111111111', $$'it''s' 'back\\slash':1A '"q"'$$,
    $$'it''s' <-> 'back\\slash':*A$$, '(1e300,-1e-300)', '{1e10,0.1,0.3}', '[(1e20,1e-7),(0.1,0.2)]',
    '(1e20,1e-7),(0.1,0.2)', '((1,2),(3,4))', '((1e20,1e-7),(0.1,0.2))', '<(1e20,1e-7),Infinity>',
    '$."a\"b".**{2 to 3}.type() ? (@ like_regex "^\\d" flag "i")', '[-2147483648,2147483647)', '(-Infinity,Infinity]',
    '["4714-11-24 00:00:00 BC","294276-12-31 23:59:59.999999"]', '["0044-03-15 00:00:00+00 BC",infinity]',
    '(0044-03-15 BC,5874897-12-30]', '[NaN,NaN]', '{(,1),(5,)}', '{(,"2001-02-03 04:05:06+00")}', '{NULL,t}',
    '{-32768,32767}', '{{1,2},{3,NULL}}', '[0:1]={-9223372036854775808,9223372036854775807}',
    '{NaN,Infinity,-Infinity,3.4028235e38,1e-45}', '{NaN,Infinity,-Infinity,1.7976931348623157e308,5e-324}',
    '{NaN,Infinity,-Infinity,0.000,1e100}',
    ARRAY['', 'NULL', 'null', NULL, ' ', ' a ', 'a,b', '{a}', '"', '\', '\"', E'\n\t\x0b\x01', 'é😀', ';', 'Null1'],
    '{{{a,"b c"},{NULL,"NULL"}},{{"\"","\\"},{",","}"}}}', '{abc,a," b "}', ARRAY['\', '"', ' ', '{', NULL]::"char"[],
    '{NULL,ffffffff-ffff-ffff-ffff-ffffffffffff}',
    ARRAY[NULL, 'null', '"NULL"', '""', E'{"a":\n"\\\\ \\" \\u00e9"}', ' 1 ', '{}']::json[],
    ARRAY[NULL, 'null', '"NULL"', '""', '{"a": "\\ \" \u00e9"}', '1', '{}']::jsonb[], '{{NULL},{"\\x225c"}}',
    ARRAY['infinity', '-infinity', NULL, '0044-03-15 BC', '5874897-12-31']::date[], '{NULL,00:00:00.000001}',
    ARRAY['infinity', '-infinity', NULL, '0044-03-15 01:02:03.4 BC', '294276-12-31 23:59:59.999999']::timestamp[],
    ARRAY['infinity', '-infinity', NULL, '0044-03-15 01:02:03.4+00 BC', '294276-12-31 23:59:59.999999+00']::timestamptz[],
    ARRAY[NULL, '-1 mons', '1 year -1 day 00:00:00.1']::interval[],
    ARRAY['NULL', NULL, 'back\slash', 'ünï, {x}']::mood[], '{{1,NULL},{3,4}}',
    ARRAY['{}', NULL, '[5:6]={NULL,1}', '{{1},{2}}']::ints[], '{{(1,2),(3,4);NULL};{(5,6),(7,8);(0,0),(0,0)}}',
    ARRAY[NULL, '(NaN,-0)']::point[], '{NULL,2001:db8::/32}', ARRAY[NULL, '(,)', '["0044-03-15 00:00:00+00 BC",)']::tstzrange[],
    ARRAY[NULL, '', '-1']::int2vector[], E'"\n'
);

-- Not numbers, fractions, exponents, and moments inside a second.
INSERT INTO types (id, "float4", "float8", "numeric", "numeric(20,4)", "text", "varchar", "char", "json", "jsonb",
    "date", "time", "timetz", "timestamp", "timestamp(0)", "timestamptz", "timestamptz(3)", "interval", "mood", "bytea")
VALUES
    (4, 'NaN', 'NaN', 'NaN', 'NaN', 'NULL', 'null', '"', 'null', 'null', 'infinity', '23:59:59.999999',
        '12:00:00.5+05:30', 'infinity', 'infinity', 'infinity', 'infinity', '00:00:00', 'back\slash', '\x00'),
    (5, '-0', '-0', 0.000, 0, 'true', 'false', E'\x01', '"NULL"', '"NULL"', '-infinity', '00:00:00.000001',
        '12:00:00-03:30:15', '-infinity', '-infinity', '-infinity', '-infinity', '-00:00:00.000001', 'ünï, {x}', '\x5c'),
    (6, 0.1, 0.1, 0.1, 0.1, '0', '-1', E'\x7f', ' [ ] ', '[]', '0001-01-01', '01:02:03.4', '00:00:00+00',
        '0001-01-01 00:00:00', '1999-12-31 23:59:59.5', '0001-01-01 00:00:00+00', '1999-12-31 23:59:59.9999+00',
        '1 mon -1 day +01:00:00', 'sad', '\x22'),
    (7, 3.4028235e38, 1.7976931348623157e308, 1e131, 1e-4, '{"a":1}', '[1,2]', '1', '-0.0e-0', '-0.0', '0001-12-31 BC',
        '12:00', '12:00+14', '0001-12-31 23:59:59.000001 BC', '0001-12-31 23:59:59 BC', '0001-12-31 23:59:59.1+00 BC',
        '0001-12-31 23:59:59.1+00 BC', '-1 years -2 mons', 'sad', '\x0a'),
    (8, 1e-45, 5e-324, 1e-130, -1e-4, E'\n', E'\u0080', ' ', '"\ud83d\ude00 \ud800"', '"\ud83d\ude00"', '10000-01-01',
        '12:00:00.1', '12:00:00.1+00:00:01', '10000-01-01 00:00:00.1', '10000-01-01 00:00:00',
        '10000-01-01 00:00:00.1+00', '10000-01-01 00:00:00.12+00', '1000000 days', 'sad', '\xff'),
    (9, 1e15, 1e15, 1e15, 1e15, repeat('é"', 300), repeat('0123456789', 30), 'x', '1', '1', '1970-01-01', '12:34:56.123456',
        '12:34:56.123456-08', '1970-01-01 00:00:00.123456', '1970-01-01 00:00:00', '1970-01-01 00:00:00.123456+00',
        '1970-01-01 00:00:00.123456+00', '1.123456 seconds', 'sad', decode(repeat('00ff', 100), 'hex')),
    (10, 123456.78, 123456789012345.67, 12345678901234567890.123456789, 1.5, E'\\u0000', E'\\', '/', '"\u0000"',
        '"\u0001"', '2000-02-29', '00:00:00', '00:00:00-00:30', '2000-02-29 00:00:00', '2000-02-29 00:00:00',
        '2000-02-29 12:00:00+05:30', '2000-02-29 00:00:00-00:00:01', '1 day', 'sad', '\x7f');

-- Composites, in each other, in arrays and in domains.
CREATE TYPE "we""ird, (\)" AS ("a ""b""" text, "c, \ d" text[], "(é)" "char");
CREATE TYPE nothing AS ();
CREATE TYPE one AS ("only" text);
CREATE TYPE lessened AS (gone int4, a int4, also_gone text, b text);
ALTER TYPE lessened DROP ATTRIBUTE gone, DROP ATTRIBUTE also_gone, ADD ATTRIBUTE c bool;
CREATE TYPE deep AS (pair pair, pairs pair[], a_pair a_pair, list a_pair[], moods mood[], at timestamptz, doc json, "box[]" box[]);
CREATE TYPE deeper AS (deep deep, deeps deep[], "float_range[]" float_range[], nothing nothing);
CREATE DOMAIN a_deeper AS deeper;
CREATE TABLE row_type (id int4, gone text, "Name" name);
ALTER TABLE row_type DROP gone;

CREATE TABLE types_nested (
    id int4 PRIMARY KEY,
    "pair" pair,
    "a_pair" a_pair,
    "pair[]" pair[],
    "weird" "we""ird, (\)",
    "nothing" nothing,
    "nothing[]" nothing[],
    "one" one,
    "one[]" one[],
    "lessened" lessened,
    "deep" deep,
    "deeper" deeper,
    "a_deeper[]" a_deeper[],
    "row_type" row_type,
    "row_type[]" row_type[]
);

INSERT INTO types_nested (id) VALUES (0);
INSERT INTO types_nested (id, "pair", "a_pair", "pair[]", "weird", "nothing", "nothing[]", "one", "one[]", "lessened")
VALUES
    (1, '(1,a)', '(2,b)', ARRAY['(1,a)', '(,)', NULL, '(,"")']::pair[], ROW('', '{}', '('), ROW(), ARRAY[ROW(), NULL]::nothing[],
        ROW(NULL), ARRAY[ROW(NULL), ROW('')]::one[], ROW(1, 'b', true)),
    (2, '(,)', '(,"")', '{}', ROW(NULL, NULL, NULL), NULL, '{}', ROW(''), '[3:4]={"(a)",NULL}', ROW(NULL, NULL, NULL)),
    (3, ROW(-1, E'"\\ (x), ''y'' \t\n\r\x01\x1f\x7f'), ROW(0, ' '), ARRAY[[ROW(1, '"'), ROW(2, '\')], [ROW(3, ','), NULL]]::pair[],
        ROW('"\', ARRAY['"', '\', NULL, 'NULL', '(', ',', ''], '\'), ROW(), '[0:0]={()}', ROW('NULL'), ARRAY[ROW('null'), ROW('"",""')]::one[],
        ROW(0, 'null', false)),
    (4, ROW(1, E'\U0001F600 \u2028 e\u0301'), ROW(1, '{"a": "(\"b\",)"}'), ARRAY[ROW(1, '{"(1,\"a\")"}')]::pair[],
        ROW('(1,"a""b\\")', ARRAY['(1,"a""b\\")'], '"'), ROW(), '{{(),()},{(),NULL}}', ROW('(,)'), ARRAY[ROW('()'), ROW(')')]::one[],
        ROW(7, ')', NULL));
INSERT INTO types_nested (id, "deep", "deeper", "a_deeper[]", "row_type", "row_type[]")
SELECT id, d, ROW(d, ARRAY[d, NULL, d]::deep[], ARRAY['[NaN,NaN]', 'empty', NULL]::float_range[], ROW())::deeper,
    ARRAY[[ROW(d, ARRAY[[d], [NULL]]::deep[], '{}', NULL)::a_deeper], [NULL]]::a_deeper[], ROW(id, 'N"a\me')::row_type, ARRAY[ROW(id, NULL), NULL, ROW(NULL, 'x')]::row_type[]
FROM (VALUES
    (5, ROW(ROW(1, E'q"\\,()\n'), ARRAY[ROW(2, '"'), NULL, ROW(NULL, '\')]::pair[], ROW(3, ''), ARRAY[ROW(4, E'\t'), ROW(5, NULL)]::a_pair[],
        ARRAY['it''s "ok"', 'back\slash', NULL, 'ünï, {x}', 'NULL']::mood[], '0044-03-15 01:02:03.4+00 BC', E'{"a": "\\" \\\\ \\u00e9",\n"b": [1e400]}',
        '{(1,2),(3,4);NULL}')::deep),
    (6, ROW(NULL, '{}', NULL, NULL, '[0:1]={sad,NULL}', 'infinity', 'null', '{{(1,2),(3,4)};{(5,6),(7,8)}}')::deep),
    (7, NULL)
) AS v (id, d);

CREATE TYPE with_casted AS (a int4, c casted[]);

CREATE TABLE types_refetched (
    id int4 PRIMARY KEY,
    "casted" casted,
    "casted[]" casted[],
    "with_casted" with_casted
);

INSERT INTO types_refetched VALUES (1, 'one', '{one,two}', '(1,{one})');
