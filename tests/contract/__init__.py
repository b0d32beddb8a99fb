"""Does each resource type see its resource as it is? Real libraries, real servers."""
