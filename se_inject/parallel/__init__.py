"""Work for several processes, here or on Ray, by the cores and the memory there are; it knows no models."""
