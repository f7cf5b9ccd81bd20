"""What recipes report while they work (`watch`, `fleet_watch`) and how they stop (`stopping`)."""
