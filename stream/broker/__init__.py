"""The broker seam: one protocol, an embedded implementation and, behind the same contract suite, others."""
