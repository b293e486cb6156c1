"""`fitlaunch calibrate`: measure what no formula gives on this host, and keep it for the planner."""
