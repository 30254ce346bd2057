"""Remote pinning by the Pinning Service API 1.0.0, both ways: `service` keeps what others ask this node to keep,
`remotes` asks other services to keep what is here."""
