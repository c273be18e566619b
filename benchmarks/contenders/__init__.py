"""The servers that the service is measured against. Each is a program that prints a line when it serves.

They read DATABASE_URL, use the tables of `store_service.database`, listen on a port of the system's
choice, and end at SIGTERM.
"""
