"""Small protocols between the engine and the outside, each owned by the room that uses it."""
