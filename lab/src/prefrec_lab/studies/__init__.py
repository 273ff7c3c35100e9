"""Studies: a question, what is varied, and the runs that answer it. `registry` names them all."""
