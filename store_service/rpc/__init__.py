"""The wire: requests checked, rules called, answers converted. No SQL here."""
