"""What `bench hub` measures: an endpoint for the Hub's clients, beside the upstream itself and a plain local load."""
