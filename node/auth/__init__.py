"""Who may do what: identities, rights, tokens, passwords. Decisions are pure; `access.py` asks for the facts."""
