"""Who failed first in an attempt, of what, and what to do: pure functions from what was left behind to a Diagnosis.

types: the values that go in and come out. signs: what an error's words mean. deaths: what an exit status means.
culprit: the one failure that the others followed from. waiting: whom ranks waited for when a collective timed out.
memory: the numbers in an out-of-memory message. nodes: nodes that did not come, or were lost. words: the sentence.
advice: what to do. diagnose: the way in. read: the edge, which gathers the evidence from a run folder.
"""
