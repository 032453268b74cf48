"""Models and finetuning strategies as they are known without torch, and where their weights lie."""
