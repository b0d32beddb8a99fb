"""How do other systems read the store? Exporters read the last tick and never touch a resource."""
