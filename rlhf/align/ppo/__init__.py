"""PPO: four roles on one base (roles), the update (trainer), its equations (mathematics), and what it takes
(memory)."""
