"""Read weight files safely and build networks from them; merge LoRAs."""
