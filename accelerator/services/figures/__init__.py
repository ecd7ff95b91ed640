"""The box's figures of the last minutes, and what they say is wrong. Changes nothing."""
