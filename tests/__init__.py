"""The tests of uno; real libraries and real servers wherever a real one runs."""
