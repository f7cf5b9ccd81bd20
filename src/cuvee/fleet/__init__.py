"""Runs and where they are kept: the store, the journal of a run, exports, and the local engine that works proxies off."""
