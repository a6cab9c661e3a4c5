"""What readers reproduce: `python -m minirlhf NAME`. Results are in README.md beside this file."""
