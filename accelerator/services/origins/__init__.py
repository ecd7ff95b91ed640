"""Origins at run time: their rules, clients and credentials, and a viewer's request as it goes to one. No answer is
looked at here."""
