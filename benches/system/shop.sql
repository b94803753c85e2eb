CREATE TABLE product (
    id int PRIMARY KEY,
    sku text NOT NULL,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL,
    stock int NOT NULL,
    version int NOT NULL,
    updated timestamptz NOT NULL,
    note text NOT NULL
) WITH (fillfactor = 50);

-- Makes `total` changes to the rows first to last in turn, each in a transaction of its own.
CREATE PROCEDURE change_one_by_one(first int, last int, total int)
LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0..total - 1 LOOP
        UPDATE product SET version = version + 1, stock = stock - 1, updated = clock_timestamp()
            WHERE id = first + i % (last - first + 1);
        COMMIT;
    END LOOP;
END
$$;
