"""EC2 on one computer: moto's API, whose instances are real SSH hosts on loopback addresses."""
