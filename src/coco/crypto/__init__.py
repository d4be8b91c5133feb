"""What is signed, and by whom: COSE messages and certificate chains. Pure."""
