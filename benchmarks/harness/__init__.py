"""What experiments share: arms, servers, repositories, comparisons, pictures, the report."""
