"""Where other libraries meet this one; none of them is imported before it is used."""
