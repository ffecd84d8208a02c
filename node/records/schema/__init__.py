"""The schema: numbered SQL files, each applied once, in order. They expand first and contract a release later."""
