-- All lookups of a round see one and the same state.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
