"""HTTP below the application: uvicorn, middleware, rate limits and the metrics server."""
