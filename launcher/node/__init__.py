"""The ranks of one node: start them, follow them, leave nothing of them; and the agent that does so on a cluster."""
