"""One module a noun of the API. They parse and answer: no SQL, no paths."""
