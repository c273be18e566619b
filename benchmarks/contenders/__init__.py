"""The servers with which the service is compared. Each is a program that prints a line when it serves.

They read DATABASE_URL, use the tables of `store_service.database`, listen on a free
port, and end at SIGTERM.
"""
