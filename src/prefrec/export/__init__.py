"""Write a ranker of a run as a folder for other software and the hub."""
