"""What can be chosen: the typed schema of a run's configuration, its resolution, validation and identity.

Imported by the orchestration and by the science; imports neither, and no torch.
"""
