"""What `bench serve` measures: whole daemons under real load, beside what people run today."""
