    workgroupBarrier();
    turn_queries(lane);
