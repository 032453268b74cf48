"""Plan, submit and watch runs. Runs on a login node or a laptop in a second, and never imports torch."""
