"""byzflow-app: a Flower app whose training some lying clients cannot steer."""
