"""Records: all SQL. One file per unit of work, one function each, one crossing."""
