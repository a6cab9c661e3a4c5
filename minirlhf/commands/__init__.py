"""What users type: `python -m minirlhf NAME`. Each file here is one command."""
