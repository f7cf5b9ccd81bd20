"""Conformance suites that anybody who implements one of cuvee's interfaces can inherit in their own tests."""
