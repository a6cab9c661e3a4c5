"""What makes a run safe and fast, and teaches nothing about reward models.

No file here imports anything of minirlhf from outside this folder.
"""
