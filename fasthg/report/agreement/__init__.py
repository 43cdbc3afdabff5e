"""The tables and the page of `fasthg data agreement`; `data.agreement` makes the numbers."""
