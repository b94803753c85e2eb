-- The server's version as a number: 170010 for 17.10.
SELECT current_setting('server_version_num')::int
