"""What happens when a machine fails: kills, full caches, damaged inputs."""
