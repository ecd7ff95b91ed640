"""How viewers come to the box, for those who arrange it: flow matrix, routers' recipes, and tests of each lane."""
