-- Tables item_1 to item_N of so many rows each.
CREATE PROCEDURE make_tables(tables int, size int)
LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 1..tables LOOP
        EXECUTE format('CREATE TABLE item_%s (id int PRIMARY KEY, name text NOT NULL, version int NOT NULL, note text NOT NULL)
                        WITH (fillfactor = 50)', t);
        EXECUTE format('INSERT INTO item_%s SELECT id, ''Item number '' || id, 0, repeat(''x'', 100)
                        FROM generate_series(1, %s) id', t, size);
        COMMIT;
    END LOOP;
END
$$;

-- Makes `total` changes, each in a transaction of its own and to another table than the one before, to so many rows of
-- each table, which lie all over it.
CREATE PROCEDURE change_tables(tables int, size int, written int, total int)
LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0..total - 1 LOOP
        EXECUTE format('UPDATE item_%s SET version = version + 1 WHERE id = %s',
                       1 + i % tables, 1 + (i / tables)::bigint * 7919 % written * (size / written));
        COMMIT;
    END LOOP;
END
$$;
