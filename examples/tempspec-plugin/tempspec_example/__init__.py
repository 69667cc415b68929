"""Three plugins for tempspec; entry points name their modules, so that nothing is imported here."""
